"""The commands of ``ghn``, one file for each kind of work. Each imports only what it needs, when it runs."""
