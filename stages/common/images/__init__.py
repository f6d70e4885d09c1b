"""From a data set's files to pixels: download, folder layout, decoding."""
