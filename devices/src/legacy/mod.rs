//! The devices of a PC that guests expect at fixed ports: serial, keyboard controller, clock, and ways to end.
