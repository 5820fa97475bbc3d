//! The kubelet's device plugin API, version `v1beta1`, generated from `proto/deviceplugin.proto`.

// Generated; what the messages mean is said in the .proto file.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("v1beta1");
