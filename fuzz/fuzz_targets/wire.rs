//! Any text as the JSON documents of the service's requests, posted loads and a model's shape. The result is
//! a document or an error, never a panic. Documents that are read, written and read again stay the same.
#![no_main]
use evenkeel_serve::{Loads, ModelSpec, binary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(loads) = Loads::from_json(bytes) {
        let body = serde_json::to_vec(&loads.to_body()).expect("a body is JSON");
        assert_eq!(Loads::from_json(&body).as_ref(), Ok(&loads));
        assert_eq!(binary::decode(&binary::encode(&loads)).as_ref(), Ok(&loads));
    }
    if let Ok(shape) = serde_json::from_slice::<ModelSpec>(bytes) {
        let text = serde_json::to_string(&shape).expect("a shape is JSON");
        assert_eq!(serde_json::from_str::<ModelSpec>(&text).expect("what is written reads"), shape);
        if shape.check().is_ok() {
            for experts in [1, 8, 256, 65_536] {
                // A later loads document determines the experts: the result is a cluster or an error.
                let _ = shape.cluster(experts);
            }
        }
    }
});
