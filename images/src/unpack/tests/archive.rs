//! Archives written by hand, block by block, with whatever is to be wrong about them.

/// An archive in the making.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

pub(super) fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    field[..text.len()].copy_from_slice(text.as_bytes());
}

/// A header with a right checksum, after `change` has had its way.
pub(super) fn header(kind: u8, name: &[u8], size: u64, change: impl FnOnce(&mut [u8; 512])) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    octal(&mut block[100..108], 0o644);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 1_000_000_000);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].copy_from_slice(b"        ");
    let sum = block.iter().map(|b| u64::from(*b)).sum();
    octal(&mut block[148..155], sum);
    block
}

impl Tar {
    pub(crate) fn raw(mut self, header: [u8; 512], data: &[u8]) -> Self {
        self.0.extend(header);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(header(b'0', name.as_bytes(), data.len() as u64, |_| ()), data)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(
            header(b'5', name.as_bytes(), 0, |h| {
                octal(&mut h[100..108], u64::from(mode))
            }),
            b"",
        )
    }

    pub(crate) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.raw(
            header(kind, name.as_bytes(), 0, |h| {
                h[157..157 + target.len()].copy_from_slice(target.as_bytes())
            }),
            b"",
        )
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let len = (1..)
                .map(|digits| rest + digits)
                .find(|len| len.to_string().len() + rest == *len)
                .unwrap();
            body.extend(format!("{len} {key}=").bytes());
            body.extend(*value);
            body.push(b'\n');
        }
        self.raw(header(b'x', b"pax", body.len() as u64, |_| ()), &body)
    }

    pub(crate) fn gnu_long(self, kind: u8, name: &[u8]) -> Self {
        let body = [name, b"\0"].concat();
        self.raw(header(kind, b"././@LongLink", body.len() as u64, |_| ()), &body)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Sets the checksum of every block that calls itself a header.
pub(super) fn mend_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].copy_from_slice(b"        ");
            let sum = block.iter().map(|b| u64::from(*b)).sum();
            octal(&mut block[148..155], sum);
        }
    }
}
