//! What the build script makes of the `.proto` files, in modules named as the packages are: code of
//! one package refers to another by that path.

#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    clippy::doc_markdown,
    clippy::missing_errors_doc,
    clippy::too_many_lines,
    missing_docs,
    unused_qualifications,
    reason = "generated code follows its generator's rules"
)]

pub(crate) mod flux {
    //! Packages of this project.

    pub(crate) mod kv {
        //! Keys and values.

        pub mod v1 {
            //! The interface `flux.kv.v1`.
            tonic::include_proto!("flux.kv.v1");
        }
    }

    pub(crate) mod cdc {
        //! The change stream.

        pub mod v1 {
            //! The interface `flux.cdc.v1`.
            tonic::include_proto!("flux.cdc.v1");
        }
    }

    pub(crate) mod admin {
        //! The cluster.

        pub mod v1 {
            //! The interface `flux.admin.v1`.
            tonic::include_proto!("flux.admin.v1");
        }
    }

    pub(crate) mod error {
        //! What went wrong.

        pub mod v1 {
            //! The error detail `flux.error.v1`.
            tonic::include_proto!("flux.error.v1");
        }
    }
}

pub(crate) mod google {
    //! Packages of googleapis.

    pub mod rpc {
        //! The parts of `google.rpc` in use.
        tonic::include_proto!("google.rpc");
    }
}

pub mod service {
    //! The interface of the first Flux-KV.
    tonic::include_proto!("service");
}
