//! What the operator declared: InferencePool and its kin, annotations parsed into a policy.
