//! Functions that the kernel's VFIO serves.
//!
//! [`Iommu`] is one I/O address space, made once for a guest; [`Iommu::open`] gives the functions in it. Behind it is an iommufd
//! and the functions' character devices where the kernel has them, and a type1 container with groups otherwise.
//! Who opens these files, [`SpaceFile`] and [`FunctionFile`], needs rights; who works with them needs none.

mod cdev;
mod failure;
mod function;
mod ioctl;
mod iommu;
mod space;

pub use function::KernelFunction;
pub use iommu::{Backend, FunctionFile, Iommu, SpaceFile};
