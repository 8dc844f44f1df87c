"""The real engine stage: vLLM on the CPU behind the local gateway. `make engine-test` installs it and runs this."""
