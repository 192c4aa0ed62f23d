"""Packs a checkout of the public ICT-FaceKit into one file, which the scripts here and examples/nano read.

    python pack.py path/to/ICT-FaceKit ict_face_model.npz

Meshes become displacements from the neutral one, in half precision; polygons are split into triangles.
"""

import argparse
from pathlib import Path

from facesnap_diffusers.data.ict_face_model import IctFaceModel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of ICT-FaceKit, or its FaceXModel folder")
    parser.add_argument("output", type=Path, help="file to write, .npz")
    args = parser.parse_args()
    IctFaceModel.load(args.checkout).save(args.output)


if __name__ == "__main__":
    main()
