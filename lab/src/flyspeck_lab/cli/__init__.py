"""The command line of the laboratory, a file for each verb."""
