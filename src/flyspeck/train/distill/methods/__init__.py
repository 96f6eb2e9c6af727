"""Methods of other papers that distil the maps of a pyramid, one file for each paper, on the levels that all methods compare."""
