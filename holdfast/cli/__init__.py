"""The commands of `holdfast`, one a file; `service.command` runs the one that is named."""
