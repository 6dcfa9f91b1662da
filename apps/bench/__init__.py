"""`mirror-edge bench`: the modes of a bundle and its peers, in turn, on the same questions."""
