//! The components that run in a cluster, each with its log.

use std::fs::File;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use super::error::{ClusterError, io, tail};
use super::layout::Layout;

#[derive(Debug)]
struct Component {
    name: String,
    child: Child,
}

/// Every component that was started. They end with the supervisor's namespaces, not one by one.
#[derive(Debug, Default)]
pub(crate) struct Components(Mutex<Vec<Component>>);

impl Components {
    /// Starts `command`, with its output in the log of `name`.
    pub(crate) fn start(
        &self,
        layout: &Layout,
        name: &str,
        mut command: Command,
    ) -> Result<(), ClusterError> {
        let path = layout.log(name);
        let log = File::create(&path).map_err(io("create", &path))?;
        let errors = log.try_clone().map_err(io("create", &path))?;
        let child = command
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(io("start", command.get_program().as_ref()))?;
        self.lock().push(Component { name: name.to_owned(), child });
        Ok(())
    }

    /// An error when a component has ended.
    pub(crate) fn check(&self, layout: &Layout) -> Result<(), ClusterError> {
        for component in self.lock().iter_mut() {
            if let Ok(Some(status)) = component.child.try_wait() {
                let log = layout.log(&component.name);
                let tail = tail(&log);
                return Err(ClusterError::Ended {
                    component: component.name.clone(),
                    outcome: status.to_string(),
                    log,
                    tail,
                });
            }
        }
        Ok(())
    }

    /// Collects the exit statuses, when the namespaces are gone.
    pub(crate) fn reap(&self) {
        for component in self.lock().iter_mut() {
            // It can only fail when the status was collected before.
            let _ = component.child.wait();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Component>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
