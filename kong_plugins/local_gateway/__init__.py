"""A stand-in for Kong where there is none: same decK file, same plugin servers, same Lua plugins. Development only."""
