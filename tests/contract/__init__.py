"""Black-box tests of the contract: what scripts, charts and people rely on."""
