"""Command lines. They read arguments and call `lab`; nothing imports from here."""
