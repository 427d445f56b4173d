"""Commands that have a file of their own; ``nashtune/cli.py`` puts them on the command line."""
