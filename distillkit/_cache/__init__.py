"""A teacher's signals on disk: computed once, read in any order by any number of processes."""
