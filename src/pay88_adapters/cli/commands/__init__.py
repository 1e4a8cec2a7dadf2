"""What the command line says about each command. What it takes to run one is imported when it runs."""
