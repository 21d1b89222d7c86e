"""Where the command line begins; it says what to install where it cannot run."""

import sys

from nexus_integrations.extras import extra


def main() -> None:
    """Run `nexus`."""
    try:
        with extra("train"):
            from nexus_integrations.cli import app
    except ImportError as error:
        sys.exit(f"error: the command line cannot run here: {error}")
    app()


if __name__ == "__main__":
    main()
