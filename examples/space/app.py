"""The web app as a Space."""

from facesnap_diffusers.app.space import serve_space


serve_space()
