"""Records, and the data sets that become records."""
