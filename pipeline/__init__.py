"""camlake below its commands, by level: arrays, then images and models, then storage, then the Ray graph."""
