"""What every room leans on: log events, checked options, locks that are safe, the machine."""
