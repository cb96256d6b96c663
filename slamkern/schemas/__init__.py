"""What each file of ours has to be, one kind a file: types, ranges, values that agree; and its reader."""
