"""The simulator: making, seeding and stepping environments; no other package knows how."""
