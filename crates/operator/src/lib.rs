//! Watches GQLADeployments and nodes, plans per GPU pool, rolls out and reports.
