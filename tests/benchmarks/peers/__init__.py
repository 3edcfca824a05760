"""camlake beside other programs that a user could choose; each side runs in a process that imports no other side."""
