"""Level 3½: what happens to a table of images on its way to rows: decoding, the network, the isolation of crashes."""
