"""What breaks things: processes, links and stores; for the tests of faults, whatever store they run on."""
