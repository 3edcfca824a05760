"""The lowest level, which every other level uses: tables, run documents, configurations, reason codes and errors."""
