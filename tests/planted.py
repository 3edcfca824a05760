"""The secret that tests plant."""

SECRET = "HUSHwJalrXUtnFEMIbPxRfiCYEXAMPLEKEY00HUS"
"""As long as a key of AWS; the tests look for its first four letters."""
FIRST_LETTERS = "HUSH"
