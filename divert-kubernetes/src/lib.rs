//! A cluster as the source of the world: watches of its API server.
//!
//! Only what compile needs is kept, object by object as it comes; nothing is cached beside the world. While
//! the API server is away, the last good state stays: what it last said is still the best guess, and
//! serving does not depend on it.
//!
//! | part | one concept |
//! |---|---|
//! | `connect` | which cluster, as who |
//! | `proxy` | pure: which proxy leads there, if any |
//! | `wire` | the connection to it, by a proxy or not |
//! | `trust` | whether it is the API server: its certificate |
//! | `objects` | the objects of a kind: a list, then a watch, then a list again where need be; back-off |
//! | `gate` | a connection that sends only while it may |
//! | `watch` | one watch: from its stream to steps |
//! | `kinds` | what is watched, and by which selectors |
//! | `definitions` | kinds that may be missing and may appear later |
//! | `sync` | pure: from steps to changes of the world; what a new list no longer has; when all is known |
//! | `source` | the watches together, in batches |
//! | `troubles` | what keeps the cluster from being followed, as it is logged |
//! | `follow` | the agent's use of it |

mod connect;
mod definitions;
mod follow;
mod gate;
mod kinds;
pub mod objects;
mod proxy;
pub mod source;
mod sync;
mod troubles;
mod trust;
pub mod watch;
mod wire;

/// What went wrong with a request, in one clause, without the layers that say the same again.
pub fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        // A page, of a load balancer.
        if status.message.trim_start().starts_with('<') {
            return format!("answered with status {}, by somebody else than the API server", status.code);
        }
        return format!("the API server says: {} ({})", status.message.trim(), status.code);
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

pub use connect::{Cluster, ClusterArgs, ConnectError};
pub use follow::{FollowError, Following, follow};
pub use gate::Gate;
pub use kinds::resource;
pub use sync::Invalid;
pub use troubles::Troubles;
