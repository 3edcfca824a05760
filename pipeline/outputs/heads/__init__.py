"""Linear heads on stored features: fitted to labels, kept as files, applied to rows, localized in feature maps."""
