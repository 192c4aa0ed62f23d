"""The subcommands of `facesnap`, one a module."""
