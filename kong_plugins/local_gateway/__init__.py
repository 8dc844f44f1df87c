"""A stand-in for Kong on a machine without Kong: same decK file, same plugin servers, same Lua plugins. Development only."""
