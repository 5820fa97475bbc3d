//! GQLADeployment and GPUClass: the Kubernetes API types, labels, conditions and CEL rules, without a client.
