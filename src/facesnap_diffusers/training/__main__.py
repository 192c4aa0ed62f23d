"""`accelerate launch -m facesnap_diffusers.training CONFIG`: the same as `facesnap train CONFIG`, in every process."""

import sys

from facesnap_diffusers.cli import main


if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
