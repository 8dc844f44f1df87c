"""`python -m kong_plugins.cli`: the same as `token-quota`, where no script was installed."""

from kong_plugins.cli.main import main

main()
