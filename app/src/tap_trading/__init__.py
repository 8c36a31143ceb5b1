"""BTC tap trading on one machine: rules, market, ledger, stream and the services."""
