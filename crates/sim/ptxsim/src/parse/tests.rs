use proptest::prelude::*;

use super::parse;

fn kernel(body: &str) -> String {
    format!(
        ".version 8.8\n.target sm_80\n.address_size 64\n.visible .entry k(\n.param .u64 k_param_0\n)\n{{\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n.reg .f32 %f<4>;\n.reg .pred %p<2>;\n{body}\n}}\n"
    )
}

#[test]
fn a_module_is_read_whole() {
    let text = "// made by hand\n.version 8.8\n.target sm_80\n.address_size 64\n/* two\nlines */ .global .align 4 .u32 N[2] = {1, 2};\n.extern .shared .align 1024 .b8 smem[];\n\
        .visible .entry first(.param .u64 a, .param .align 8 .b8 b[20], .param .u32 c)\n.maxntid 32, 4, 1\n.minnctapersm 2\n{\n.shared .align 16 .b8 s[100];\n.local .align 8 .b8 depot[24];\n\
        .reg .b32 %r<2>;\n$L_0:\n{ .reg .b32 %r<3>; mov.u32 %r2, s; }\nbra.uni $L_0;\nret;\n}\n.entry second\n{\nret;\n}\n";
    let module = parse(text).unwrap();
    assert_eq!((module.version, module.target.as_str()), ((8, 8), "sm_80"));
    let names: Vec<&str> = module.kernels().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    let first = module.kernel("first").unwrap();
    let params: Vec<(u32, u32)> = first.params.iter().map(|param| (param.offset, param.bytes)).collect();
    assert_eq!(params, [(0, 8), (8, 20), (28, 4)]);
    assert_eq!(
        (first.max_threads, first.static_shared, first.local_bytes, first.instructions()),
        (Some(128), 100, 24, 3)
    );
    assert_eq!(
        (module.kernel("second").unwrap().max_threads, module.kernel("third").is_none()),
        (None, true)
    );
}

#[test]
fn errors_name_the_line_and_what_is_wrong() {
    for (body, line, problem) in [
        ("add.u32 %r1, %r2, %r9;", 12, "`%r9` is neither a declared name nor a constant"),
        ("\nadd.u32 %r9, %r2, %r1;", 13, "`%r9` is no register that was declared"),
        ("add.sat.s32 %r1, %r2, %r3;", 12, "opcode `add.sat.s32` is not supported: unknown modifier `.sat`"),
        ("wgmma.fence.sync.aligned;", 12, "opcode `wgmma.fence.sync.aligned` is not supported"),
        ("add.u32 %r1, %r2;", 12, "1 destinations and 1 sources are not what this opcode takes"),
        ("add.u32;", 12, "operand 1 is missing"),
        ("bra $nowhere;", 12, "no label `$nowhere`"),
        ("bar.sync 1, 64;", 12, "opcode `bar.sync` is not supported; only `bar.sync 0` is"),
        ("ld.global.v4.u32 {%r1, %r2}, [%rd1];", 12, "a vector of 4 has 2 elements"),
        ("ld.global.u32 %r1, %rd1;", 12, "`%rd1` is no address in brackets"),
        ("cvt.u32.f32 %r1, %f1;", 12, "opcode `cvt.u32.f32` is not supported"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 12;", 12, "cp.async copies 4, 8 or 16 bytes"),
        (".reg .b32 %x<99999>;", 12, "`%x<99999>` makes more than 65536 registers"),
        (".shared .b8 x[4294967295];", 12, "`x` makes more than 524288 bytes"),
        ("@%p1", 12, "the text ends within a statement"),
        ("call.uni f, ();", 12, "opcode `call.uni` is not supported"),
    ] {
        let error = parse(&kernel(body)).unwrap_err();
        assert_eq!((error.line, error.problem.as_str()), (line, problem), "{body}");
    }
    for (text, problem) in [
        ("", "no `.version`: this is no PTX"),
        (".version 8.x\n", "`8.x` is no version"),
        (
            ".version 8.8\n.func f() { ret; }",
            "device functions are not supported: have the compiler inline them",
        ),
        ("\u{7f}ELF;", "`\u{7f}ELF` is not supported"),
    ] {
        assert_eq!(parse(text).unwrap_err().problem, problem, "{text}");
    }
    assert_eq!(parse("x").unwrap_err().to_string(), "PTX line 1: the text ends within a statement");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    /// Texts that look like PTX reach further than noise.
    #[test]
    fn no_damaged_kernel_makes_it_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            ".reg", ".b32", "%r", "<", "4294967295", ">", ";", "{", "}", "[", "]", ",", "+", "-", "@", "!", "%p1", "%r1", "%rd1",
            "ld.global.v4.u32", "mov.b64", "shl.b32", "ldmatrix.sync.aligned.m8n8.x4.shared.b16", "shfl.sync.bfly.b32", "|", "_",
            "cp.async.cg.shared.global", "16", "0f3F800000", "0fé", "$L", ":", "bra", ".shared", ".align", "3", "x[", "\n", "/*", "//", " ", "ü",
        ]), 0..40),
        entry in any::<bool>(),
    ) {
        let text = words.join(" ");
        let _ = parse(&if entry { kernel(&text) } else { text });
    }
}
