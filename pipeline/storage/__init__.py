"""Level 3: listing, planning, fetching, committing and reading back."""
