"""Supply chain: hashed locks, audit, licences and the bill of materials; see docs/supply-chain.md."""
