"""camlake beside other programs that a user could choose; each pipeline runs in a process that imports no other one."""
