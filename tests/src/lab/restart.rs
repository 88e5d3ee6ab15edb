//! A node that goes down with all it has, and comes up again.

use std::sync::{Arc, PoisonError};

use anyhow::Result;

use super::{ClusterIps, Lab, Pod};
use crate::broker::Broker;
use crate::named_netns::NamedNetNs;

/// What is to come up again: the pods by name, with their places in the network.
#[derive(Debug)]
pub struct Down(Vec<(String, u8)>);

impl Lab {
    /// Takes the node down, without a word to anybody: all processes in its cgroups, agents included, the cgroups,
    /// and all its namespaces. What is left is the network outside of it. Then the node comes up, empty.
    ///
    /// # Errors
    /// When a part of it cannot be taken away or made again.
    pub fn restart(&mut self) -> Result<Down> {
        let pods: Vec<_> = self.pods.drain().collect();
        // As when the power fails: those that run have no time to see the rest go.
        self.cgroup.remake()?;
        let mut down = Vec::new();
        for (name, pod) in pods {
            self.remove_sandbox(&pod)?;
            down.push((name, pod.number));
        }
        self.restarts += 1;
        self.node = NamedNetNs::new(&format!("{}.node{}", self.name, self.restarts))?;
        self.node.ip_batch("link set lo up\n")?;
        let cgroup = self.cgroup.child("pods")?;
        self.cgroup.child("agents")?;
        self.broker = Arc::new(Broker::start(&cgroup)?);
        Ok(Down(down))
    }

    /// Starts the pods again, with the addresses that they had, in new namespaces.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub fn start_pods(&mut self, down: Down) -> Result<()> {
        let cgroup = self.cgroup.path().join("pods");
        for (name, number) in down.0 {
            let netns = format!("{}.{}.up{}", self.name, name.replace('/', "."), self.restarts);
            let pod = self.make_pod(&name, number, &netns, &cgroup, &self.broker)?;
            self.bridge.ip_batch(&format!("link set p{number} master br0 up\n"))?;
            self.cluster_ips_of(&pod).try_for_each(|ips| pod.add_cluster_ips(ips))?;
            self.pods.insert(name, Arc::new(pod));
        }
        Ok(())
    }

    fn cluster_ips_of(&self, pod: &Pod) -> impl Iterator<Item = ClusterIps> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let own: Vec<_> = served.iter().filter(|(name, _)| *name == pod.name).map(|(_, ips)| *ips).collect();
        own.into_iter()
    }
}
