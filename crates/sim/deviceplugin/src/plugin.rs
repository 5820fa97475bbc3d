//! The service that the kubelet calls.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use gqla_telemetry::CancellationToken;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::allocate::{AllocateError, allocate};
use crate::api::device_plugin_server::DevicePlugin;
use crate::api::{
    AllocateRequest, AllocateResponse, Device, DevicePluginOptions, Empty, ListAndWatchResponse,
};
use crate::devices::Devices;
use crate::driver::Driver;

/// Answers from what is known of the GPUs.
#[derive(Clone, Debug)]
pub struct Plugin {
    driver: Driver,
    devices: watch::Receiver<Devices>,
    stop: CancellationToken,
}

impl Plugin {
    /// Hands out `devices` with the libraries of `driver`. Streams end when `stop` is cancelled.
    pub fn new(driver: Driver, devices: watch::Receiver<Devices>, stop: CancellationToken) -> Self {
        Self { driver, devices, stop }
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.devices.clone()).map(|devices| Ok(list(&devices)));
        Ok(Response::new(Box::pin(lists.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mounts = self.driver.mounts().map_err(|error| {
            let nvml = self.driver.nvml();
            Status::unavailable(format!(
                "the folder of {} cannot be read ({error}): install the driver on this node",
                nvml.display()
            ))
        })?;
        let devices = self.devices.borrow().clone();
        let answer = allocate(&request.into_inner(), &devices, &mounts).map_err(|error| match error {
            AllocateError::Unknown { .. } => Status::not_found(error.to_string()),
            AllocateError::Unhealthy { .. } => Status::failed_precondition(error.to_string()),
        })?;
        Ok(Response::new(answer))
    }
}

fn list(devices: &Devices) -> ListAndWatchResponse {
    let device = |(id, fault): (&String, &Option<_>)| Device {
        id: id.clone(),
        health: if fault.is_none() { "Healthy" } else { "Unhealthy" }.to_owned(),
    };
    ListAndWatchResponse { devices: devices.iter().map(device).collect() }
}
