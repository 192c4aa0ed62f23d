"""`python -m facesnap_diffusers` is the `facesnap` command."""

from .cli import main


if __name__ == "__main__":
    main()
