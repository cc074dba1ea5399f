//! Files of the workspace, as a session sees them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use cloister_session::{Condition, Files, FolderEntry, Found, Opened, Upload};
use cloister_types::wire::{ErrorBody, FileEntry, FileWritten};
use cloister_types::{ErrorCode, SessionId, WorkspacePath};
use futures_util::stream;
use http_body_util::BodyExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, percent_encode};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::sessions::session_id;
use crate::Api;
use crate::body::{drain, query};
use crate::error::{Answer, ApiError};
use crate::range::{self, Part};

/// What a name may hold unencoded in a URL's path.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[derive(Deserialize)]
pub(super) struct Folder {
    path: Option<String>,
}

/// List a folder; the workspace if no path is given.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files", tag = "files",
    params(("id" = String, Path), ("path" = Option<String>, Query, description = "Folder, relative to the workspace")),
    responses((status = 200, body = Vec<FileEntry>), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    folder: Result<Query<Folder>, QueryRejection>,
) -> Answer<Response> {
    let folder = query(folder)?;
    let files = api.sessions.files(&session_id(&id)?).await?;
    let path = parse(folder.path.unwrap_or_default().as_bytes())?;
    match files.read(path).await? {
        Found::Folder(entries) => Ok(listing(entries)),
        Found::File(_) => Err(ApiError::new(ErrorCode::NotFound, "no such directory")),
    }
}

fn listing(entries: Vec<FolderEntry>) -> Response {
    let entries: Vec<FileEntry> = entries
        .into_iter()
        .map(|entry| {
            let text = String::from_utf8(entry.name.clone());
            FileEntry {
                name_encoded: text.is_err().then(|| percent_encode(&entry.name, PLAIN).to_string()),
                name: text.unwrap_or_else(|_| String::from_utf8_lossy(&entry.name).into_owned()),
                kind: entry.kind,
                size: entry.size,
                modified: entry.modified,
            }
        })
        .collect();
    Json(entries).into_response()
}

/// Download a file, whole or in part; or list a folder.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/files/{*path}", tag = "files",
    params(
        ("id" = String, Path),
        ("path" = String, Path, description = "Relative to the workspace; slashes as they are, other bytes percent-encoded"),
        ("Range" = Option<String>, Header),
        ("If-Match" = Option<String>, Header),
        ("If-None-Match" = Option<String>, Header),
    ),
    responses(
        (status = 200, description = "The bytes, or a listing", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 304),
        (status = 403, description = "invalid_path", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 412, body = ErrorBody),
        (status = 416, body = ErrorBody),
    )
)]
pub(super) async fn get(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Answer<Response> {
    let (files, path) = open(&api, &uri).await?;
    match files.read(path).await? {
        Found::Folder(entries) => Ok(listing(entries)),
        Found::File(file) => download(file, &headers).await,
    }
}

async fn download(opened: Opened, headers: &HeaderMap) -> Answer<Response> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let among =
        |list: &str| list.split(',').any(|tag| tag.trim() == "*" || tag.trim().trim_start_matches("W/") == opened.tag);
    if text(header::IF_MATCH).is_some_and(|list| !among(list)) {
        return Err(ApiError::new(
            ErrorCode::PreconditionFailed,
            "the file is not in the state that the request demands",
        ));
    }
    let tag = HeaderValue::from_str(&opened.tag).map_err(|_| ApiError::new(ErrorCode::Internal, "bad tag"))?;
    let mut response = Response::new(Body::empty());
    let out = response.headers_mut();
    out.insert(header::ETAG, tag);
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // What an agent wrote must not run as a page of this origin.
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if text(header::IF_NONE_MATCH).is_some_and(among) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    // A range of a file that has changed meanwhile would be a patchwork.
    let same = text(header::IF_RANGE).is_none_or(|tag| tag == opened.tag);
    let (first, length) = match range::parse(text(header::RANGE).filter(|_| same), opened.size) {
        Part::Whole => (0, opened.size),
        Part::Bytes { first, last } => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let value = format!("bytes {first}-{last}/{}", opened.size);
            response
                .headers_mut()
                .extend(HeaderValue::from_str(&value).ok().map(|value| (header::CONTENT_RANGE, value)));
            (first, last - first + 1)
        }
        Part::Unsatisfiable => {
            let mut refused =
                ApiError::new(ErrorCode::RangeNotSatisfiable, "the range lies outside the file").into_response();
            let value = format!("bytes */{}", opened.size);
            refused
                .headers_mut()
                .extend(HeaderValue::from_str(&value).ok().map(|value| (header::CONTENT_RANGE, value)));
            return Ok(refused);
        }
    };
    let mut file = tokio::fs::File::from_std(opened.file);
    if first > 0 {
        file.seek(std::io::SeekFrom::Start(first))
            .await
            .map_err(|_| ApiError::new(ErrorCode::Internal, "the file cannot be read"))?;
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    *response.body_mut() = Body::from_stream(stream::unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return None;
        }
        let mut buffer = vec![0; (64 << 10).min(usize::try_from(left).unwrap_or(usize::MAX))];
        match file.read(&mut buffer).await {
            // Shorter than announced: break the connection rather than lie.
            Ok(0) => Some((Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)), (file, 0))),
            Ok(got) => {
                buffer.truncate(got);
                Some((Ok(Bytes::from(buffer)), (file, left - got as u64)))
            }
            Err(error) => Some((Err(error), (file, 0))),
        }
    }));
    Ok(response)
}

/// Upload a file. Missing folders are made; the file appears whole or not at
/// all.
#[utoipa::path(
    put, path = "/v1/sessions/{id}/files/{*path}", tag = "files",
    params(
        ("id" = String, Path),
        ("path" = String, Path, description = "Relative to the workspace"),
        ("If-Match" = Option<String>, Header),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is no such file"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, body = FileWritten),
        (status = 403, description = "read_only_path, invalid_path", body = ErrorBody),
        (status = 404, description = "Outside the session's scope", body = ErrorBody),
        (status = 409, description = "A directory is in the way", body = ErrorBody),
        (status = 412, body = ErrorBody),
        (status = 413, description = "payload_too_large, quota_exceeded", body = ErrorBody),
        (status = 507, body = ErrorBody),
    )
)]
pub(super) async fn put(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap, mut body: Body) -> Answer<Response> {
    match receive(&api, &uri, &headers, &mut body).await {
        Ok(response) => Ok(response),
        Err(error) => {
            drain(body).await;
            Err(error)
        }
    }
}

async fn receive(api: &Api, uri: &Uri, headers: &HeaderMap, body: &mut Body) -> Answer<Response> {
    let (files, path) = open(api, uri).await?;
    if uri.path().ends_with('/') {
        return Err(ApiError::new(ErrorCode::InvalidPath, "a file's path does not end with a slash"));
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > api.upload_limit) {
        return Err(Upload::too_large(api.upload_limit).into());
    }
    let mut upload = files.upload(path.clone(), condition(headers)?, announced).await?;
    let limit = upload.room.map_or(api.upload_limit, |room| room.min(api.upload_limit));
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::invalid("the upload ended early"))?;
        let Ok(bytes) = frame.into_data() else { continue };
        size += bytes.len() as u64;
        if size > limit {
            return Err(Upload::too_large(limit).into());
        }
        upload = upload.write(bytes).await?;
    }
    let written = upload.commit().await?;
    let tag = HeaderValue::from_str(&written.tag).ok().map(|tag| (header::ETAG, tag));
    let answer = FileWritten { path: path.to_text(), size: written.size, modified: written.modified };
    let mut response = (StatusCode::CREATED, Json(answer)).into_response();
    response.headers_mut().extend(tag);
    Ok(response)
}

/// Delete a file or an empty folder.
#[utoipa::path(
    delete, path = "/v1/sessions/{id}/files/{*path}", tag = "files",
    params(("id" = String, Path), ("path" = String, Path), ("If-Match" = Option<String>, Header)),
    responses(
        (status = 204),
        (status = 400, description = "is_directory: it is not empty", body = ErrorBody),
        (status = 403, description = "read_only_path, invalid_path", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "The path is part of the session's scope", body = ErrorBody),
        (status = 412, body = ErrorBody),
    )
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, uri: Uri, headers: HeaderMap) -> Answer<StatusCode> {
    let (files, path) = open(&api, &uri).await?;
    files.remove(path, condition(&headers)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The session's files and the path of a URL. An unknown session is told
/// before anything about the path.
async fn open(api: &Api, uri: &Uri) -> Answer<(Files, WorkspacePath)> {
    let (id, raw) = split(uri)?;
    let files = api.sessions.files(&id).await?;
    Ok((files, path_of(raw)?))
}

fn split(uri: &Uri) -> Answer<(SessionId, &str)> {
    let rest = uri.path().strip_prefix("/v1/sessions/").and_then(|rest| rest.split_once("/files/"));
    let (id, raw) = rest.ok_or_else(|| invalid_path("the path is not in its plain form"))?;
    Ok((session_id(id)?, raw))
}

/// The workspace path of a URL, decided on its syntax before any look-up. The
/// raw path is read, because a decoded one no longer shows an encoded slash.
fn path_of(raw: &str) -> Answer<WorkspacePath> {
    let lower = raw.to_ascii_lowercase();
    if lower.contains("%2f") {
        return Err(invalid_path("an encoded slash is not a name"));
    }
    let well_formed = raw.bytes().enumerate().filter(|(_, byte)| *byte == b'%').all(|(at, _)| {
        raw.as_bytes().get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !well_formed {
        return Err(invalid_path("a percent sign must be followed by two hexadecimal digits"));
    }
    parse(&percent_decode(raw.as_bytes()).collect::<Vec<u8>>())
}

fn parse(bytes: &[u8]) -> Answer<WorkspacePath> {
    WorkspacePath::parse(bytes).map_err(|error| invalid_path(&error.to_string()))
}

fn invalid_path(message: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidPath, message)
}

fn condition(headers: &HeaderMap) -> Answer<Condition> {
    let tags = |name: HeaderName| -> Answer<Option<Option<Vec<String>>>> {
        let Some(value) = headers.get(&name) else { return Ok(None) };
        let text = value.to_str().map_err(|_| ApiError::invalid(format!("{name} is not readable")))?;
        if text.trim() == "*" {
            return Ok(Some(None));
        }
        Ok(Some(Some(text.split(',').map(|tag| tag.trim().to_owned()).collect())))
    };
    match (tags(header::IF_MATCH)?, tags(header::IF_NONE_MATCH)?) {
        (Some(_), Some(_)) => Err(ApiError::invalid("If-Match and If-None-Match exclude each other")),
        (Some(tags), None) => Ok(Condition::Match(tags)),
        (None, Some(tags)) => Ok(Condition::NoneMatch(tags)),
        (None, None) => Ok(Condition::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str) -> Result<String, u16> {
        let id = SessionId::from_random([0xab; 6]);
        let uri: Uri = format!("/v1/sessions/{id}/files/{raw}").parse().unwrap();
        let (found, raw) = split(&uri).unwrap();
        assert_eq!(found, id);
        path_of(raw).map(|path| path.to_text()).map_err(|error| error.into_response().status().as_u16())
    }

    #[test]
    fn paths_are_judged_by_their_syntax() {
        assert_eq!(path("a/b%20c"), Ok("a/b c".into()));
        assert_eq!(path("a/./b/"), Ok("a/b".into()));
        for bad in
            ["..", "a/../b", "%2e%2e/b", "a/%2E%2e", "a%2fb", "a%2Fb", "/etc/passwd", "%2fetc", "a%00b", "a%zz", "a%2"]
        {
            assert_eq!(path(bad), Err(403), "{bad}");
        }
    }
}
