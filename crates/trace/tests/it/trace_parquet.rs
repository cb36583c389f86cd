//! Tests of Parquet: layouts of several writers, and files that claim too much.
#![cfg(feature = "parquet")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use crate::trace_support::Folder;
use evenkeel_trace::{ReadOptions, Trace, TraceFormat, read_bytes, write};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{
    EnabledStatistics, WriterProperties, WriterPropertiesBuilder, WriterVersion,
};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

const ROWS: i32 = 3000;

/// The columns in use, and others of many types.
const SCHEMA: &str = "message table {
    optional int64 layer (INTEGER(64, true));
    required binary step (UTF8);
    required int32 expert (INTEGER(16, false));
    optional int64 time (TIMESTAMP(NANOS, true));
    required int32 price (DECIMAL(9, 2));
    required int32 clock (TIME(MILLIS, false));
    required int64 tokens;
}";

fn bytes(bytes: &[u8]) -> Result<Trace, String> {
    read_bytes(TraceFormat::Parquet, bytes, &ReadOptions::default()).map_err(|error| error.to_string())
}

/// Returns a file of `groups` row groups with [`ROWS`] rows each: steps of 100 rows, 2 layers and 50 experts,
/// tokens by row.
fn table(groups: i32, properties: WriterPropertiesBuilder) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).unwrap();
    for group in 0..groups {
        let rows: Vec<i32> = (group * ROWS..(group + 1) * ROWS).collect();
        let ints = |value: &dyn Fn(i32) -> i32| rows.iter().map(|&row| value(row)).collect::<Vec<i32>>();
        let longs =
            |value: &dyn Fn(i32) -> i32| rows.iter().map(|&row| i64::from(value(row))).collect::<Vec<i64>>();
        let levels = vec![1; rows.len()];
        let mut writer = file.next_row_group().unwrap();
        let mut at = 0;
        while let Some(mut column) = writer.next_column().unwrap() {
            match (at, column.untyped()) {
                (0, ColumnWriter::Int64ColumnWriter(out)) => {
                    out.write_batch(&longs(&|row| row / 50 % 2), Some(&levels), None)
                }
                (1, ColumnWriter::ByteArrayColumnWriter(out)) => {
                    let steps: Vec<ByteArray> =
                        rows.iter().map(|row| ByteArray::from(format!("s{}", row / 100).as_str())).collect();
                    out.write_batch(&steps, None, None)
                }
                (2, ColumnWriter::Int32ColumnWriter(out)) => {
                    out.write_batch(&ints(&|row| row % 50), None, None)
                }
                (3, ColumnWriter::Int64ColumnWriter(out)) => {
                    out.write_batch(&longs(&|row| row), Some(&levels), None)
                }
                (4 | 5, ColumnWriter::Int32ColumnWriter(out)) => {
                    out.write_batch(&ints(&|row| row), None, None)
                }
                (6, ColumnWriter::Int64ColumnWriter(out)) => {
                    out.write_batch(&longs(&|row| row % 7), None, None)
                }
                _ => panic!("column {at}"),
            }
            .unwrap();
            column.close().unwrap();
            at += 1;
        }
        writer.close().unwrap();
    }
    file.into_inner().unwrap()
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::try_new(3).unwrap())
}

#[test]
fn layouts_of_other_writers() {
    let plain = || WriterProperties::builder().set_dictionary_enabled(false);
    let small = || {
        WriterProperties::builder()
            .set_data_page_row_count_limit(150)
            .set_write_batch_size(50)
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_write_page_header_statistics(true)
    };
    let mut cases = Vec::new();
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for packing in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd()] {
            cases.push(WriterProperties::builder().set_writer_version(version).set_compression(packing));
            cases.push(plain().set_writer_version(version).set_compression(packing));
            cases.push(small().set_writer_version(version).set_compression(packing));
            cases.push(
                small()
                    .set_writer_version(version)
                    .set_compression(packing)
                    .set_bloom_filter_enabled(true)
                    .set_created_by("another writer".into())
                    .set_sorting_columns(Some(vec![SortingColumn {
                        column_idx: 1,
                        descending: false,
                        nulls_first: true,
                    }]))
                    .set_key_value_metadata(Some(vec![
                        KeyValue::new("pandas".into(), "{}".repeat(3000)),
                        KeyValue::new("none".into(), None),
                    ])),
            );
        }
    }
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let text = || plain().set_writer_version(version).set_compression(zstd());
        cases.push(text().set_column_encoding("step".into(), Encoding::DELTA_BYTE_ARRAY));
        cases.push(text().set_column_encoding("step".into(), Encoding::DELTA_LENGTH_BYTE_ARRAY));
    }
    cases.push(plain().set_column_encoding("tokens".into(), Encoding::DELTA_BINARY_PACKED));
    cases.push(plain().set_offset_index_disabled(true).set_statistics_enabled(EnabledStatistics::None));
    for (at, properties) in cases.into_iter().enumerate() {
        let trace = bytes(&table(3, properties)).unwrap_or_else(|message| panic!("layout {at}: {message}"));
        assert_eq!((trace.steps().len(), trace.experts(), trace.layers()), (90, 50, &[0, 1][..]), "{at}");
        let row = 89 * 100 + 50;
        assert_eq!(trace.loads(89, 1), (row..row + 50).map(|row| row % 7).collect::<Vec<u64>>(), "{at}");
    }
}

#[test]
fn own_files_with_long_labels() {
    // This label makes statistics, and with them page headers, longer than usual.
    let labels = vec!["x".repeat(4096), "y".repeat(4096)];
    let trace = Trace::from_loads(2, vec![0], labels.clone(), vec![1, 2, 3, 4]).unwrap();
    let folder = Folder::new();
    let path = folder.path().join("t.parquet");
    write(&trace, &path).unwrap();
    let again = bytes(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((again.steps(), again.loads(1, 0)), (&labels[..], &[3, 4][..]));
    // Longer labels cannot be read, so they are not written either.
    let trace = Trace::from_loads(2, vec![0], vec!["x".repeat(4097)], vec![1, 2]).unwrap();
    let message = write(&trace, &folder.path().join("long.parquet")).unwrap_err().to_string();
    assert!(message.contains("a step label of 4097 bytes, expected at most 4096"), "{message}");
}

/// Replaces the metadata in the footer, and its length.
fn with_footer(file: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let (rest, tail) = file.split_at(file.len() - 8);
    let length = u32::from_le_bytes(tail[..4].try_into().unwrap());
    let (pages, metadata) = rest.split_at(rest.len() - length as usize);
    let mut metadata = metadata.to_vec();
    change(&mut metadata);
    let length = (metadata.len() as u32).to_le_bytes();
    [pages, &metadata, &length, b"PAR1"].concat()
}

#[test]
fn lists_of_nothing_in_the_footer() {
    let file = table(1, WriterProperties::builder());
    // The unknown field 20: 14 lists of two thousand million booleans, which take no bytes.
    let bomb = with_footer(&file, |metadata| {
        metadata.pop();
        metadata.extend([0x09, 40, 0xe9]);
        metadata.extend([0xf1, 0xff, 0xff, 0xff, 0xff, 0x07].repeat(14));
        metadata.push(0);
    });
    let message = bytes(&bomb).unwrap_err();
    assert!(message.contains("input, footer, byte "), "{message}");
    assert!(message.contains("found a container of 2147483647 booleans"), "{message}");
    // The same field with harmless content is skipped.
    let odd = with_footer(&file, |metadata| {
        metadata.pop();
        metadata.extend([0x09, 40, 0x33, 1, 2, 3, 0]);
    });
    bytes(&odd).unwrap();
    // A list that claims more than there is, nested structs, and a known field of another type.
    for (tail, expected) in [
        (&[0x09, 40, 0xf5, 0xff, 0xff, 0xff, 0xff, 0x07, 0][..], "a container of 2147483647 elements"),
        (&[0x1c; 100][..], "structs and lists nested more than 32 deep"),
        (&[0x0a, 8, 0x01, 0][..], "field 4 of type 10, expected a list in that field"),
        (&[0x08, 40, 0xff, 0xff, 0xff, 0xff, 0x0f, 0][..], "4294967295 bytes of text"),
    ] {
        let file = with_footer(&file, |metadata| {
            metadata.pop();
            metadata.extend(tail);
        });
        let message = bytes(&file).unwrap_err();
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn footers_that_are_none() {
    let file = table(1, WriterProperties::builder());
    let mut encrypted = file.clone();
    *encrypted.last_mut().unwrap() = b'E';
    let mut long = file.clone();
    let tail = long.len() - 8;
    long[tail..tail + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    for (file, expected) in [
        (&encrypted[..], "found an encrypted footer (PARE), expected a plain one (PAR1)"),
        (&long, "found a footer of 4294967295 bytes, expected at most"),
        (b"PAR1", "found 4 bytes, expected a Parquet file"),
        (b"PAR1\0\0\0\0PAR0", "found \"PAR0\", expected PAR1"),
    ] {
        let message = bytes(file).unwrap_err();
        assert!(message.contains(expected), "{expected}: {message}");
    }
    for length in (0..file.len()).step_by(97) {
        assert!(bytes(&file[..length]).is_err(), "cut to {length}");
    }
}

#[test]
fn dictionaries_larger_than_their_page() {
    let mut file = table(1, WriterProperties::builder().set_compression(zstd()));
    // The first page is the dictionary of layers: two entries, field 1 of field 7.
    let at = (4..64).find(|&at| file[at..].starts_with(&[0x4c, 0x15, 4, 0x15])).unwrap();
    file[at + 2] = 0x7e;
    let message = bytes(&file).unwrap_err();
    assert!(
        message.contains("row group 0, column layer, byte 4: found a dictionary of 63 entries in 16 bytes"),
        "{message}"
    );
}

/// A file found by fuzzing. The header of the second page of `tokens` holds unknown fields: nested lists of
/// hundreds of millions of booleans each. Skipping them takes minutes.
const LISTS_OF_NOTHING: &str = "504152311504151e15304c1506150012000028b52ffd200f790000010000003001000000610100000032150015101522\
     2c1524151015061506000028b52ffd200841e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9041500\
     150200150015101502003c1624000016c406151a16880515220026001c150219350006101918056c1c16541544160000\
     19162400191c16d610191806746f6b656e73150c162416820316ea0126b204269e031c18081100000000000000180800\
     00000000000000160028081100000000000000180800000000000000001111005c48057472616365150800150c250018\
     0473746570250000150225006505187261796c0015e9e9ffffffffffffffffffffffffffffffffffffffffffffffffff\
     ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff\
     ffffffffffffffff1fe9e9e9e9e9e9e9e9e9e9e9e9e9e9e9e9fffffff7ffffff1fe9e9e9e9e9e9e9e9e9e9e9e9e9e9e9\
     e9e9e9e9e9e9e9e9e90b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b\
     0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b021916000019120219180400000000191804020000001502\
     191600001912021918040000000019180402000000150219160000191202191808000000000000000019180811000000\
     00000000150219160000191c1654154416000019162400191c16d601153e16000000191c16da02154416000000191c16\
     b2041556160000001502195c4805747261a59aeaf7ffeaf3da001804737465482500001502250018056c617965720015\
     0225001806657870650000191c16b2041556160000001502195c48057472616365150800150c250018040d7465702500\
     001502250018056c617965720015022500180665787065727400150425001806746f6b656e73001624191c194c26001c\
     150c193500061019180473746570150c1624166c169001265426081c3600280161180130111100192c15041500150200\
     150015101502003c1624000016c406151a16880515220026001c150219350006101918056c61796572150c1624165816\
     7c26d6012698011c1804020000001804000000001600280402000000180400000000111100192c150415001502001500\
     15101502000016de06151616aa05152e0026001c15021935000610191806657870657274150c16241666168a0126da02\
     2694021c1804020000001804000000001600280402000000180400000000111100192c15041500150200150015101502\
     000016f406151616d805152e0026001c15041935000610191806746f6b656e73150c162416820316ea0126b204269e03\
     1c180811000000000000001808000000000000000016002808110000000000000018080000000000000000111100192c\
     150415001502001500151015020000168a071516168606153e0016ac0516242608168005140000281970617271756574\
     2d72732076657273696f6e2036302e312e30194c1c00001c00001c00001c000000eb01000050415231";

#[test]
fn lists_of_nothing_in_a_page_header() {
    let text = LISTS_OF_NOTHING.as_bytes();
    let file: Vec<u8> = text
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let message = bytes(&file).unwrap_err();
    assert!(message.contains("page header at byte"), "{message}");
}

#[test]
fn long_labels_are_refused_before_they_are_copied() {
    // A few kilobytes decompress to a label of 16 MiB for every row.
    for encoding in [None, Some(Encoding::DELTA_BYTE_ARRAY)] {
        let schema = "message m { required binary step (UTF8); required int32 layer; required int32 expert; required int64 tokens; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut properties = WriterProperties::builder()
            .set_compression(zstd())
            .set_statistics_enabled(EnabledStatistics::None)
            .set_dictionary_page_size_limit(1 << 30);
        if let Some(encoding) = encoding {
            properties =
                properties.set_dictionary_enabled(false).set_column_encoding("step".into(), encoding);
        }
        let mut bytes_of = Vec::new();
        let mut file =
            SerializedFileWriter::new(&mut bytes_of, schema, Arc::new(properties.build())).unwrap();
        let mut group = file.next_row_group().unwrap();
        let rows = 20;
        let label = ByteArray::from(vec![b'x'; 16 << 20]);
        for column in 0..4 {
            let mut writer = group.next_column().unwrap().unwrap();
            match column {
                0 => drop(
                    writer
                        .typed::<ByteArrayType>()
                        .write_batch(&vec![label.clone(); rows], None, None)
                        .unwrap(),
                ),
                3 => drop(writer.typed::<Int64Type>().write_batch(&vec![1; rows], None, None).unwrap()),
                _ => drop(writer.typed::<Int32Type>().write_batch(&vec![0; rows], None, None).unwrap()),
            }
            writer.close().unwrap();
        }
        group.close().unwrap();
        file.close().unwrap();
        let read = std::time::Instant::now();
        let message = bytes(&bytes_of).unwrap_err();
        let expected =
            if encoding.is_some() { "a label of more than 4096 bytes" } else { "a label of 16777216 bytes" };
        assert!(message.contains(expected), "{message}");
        assert!(read.elapsed().as_secs() < 10, "{:?}", read.elapsed());
    }
}
