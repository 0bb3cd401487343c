//! The stream of what is new, for one page: server-sent events, at most a few a second, each with all that came since the
//! one before. A page that was away says where it stands (`Last-Event-ID`, which browsers send by themselves).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::dashboard::Board;
use crate::dashboard::answers::Place;

/// What happens within this time is told together.
const TOGETHER: Duration = Duration::from_millis(250);
/// A word at least so often, so that a page sees that it is still connected, and we see that it has gone.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What one page is sent until the run is over or the page has gone; `seat` is given back then.
pub(super) fn stream(
    board: Arc<Board>,
    place: Place,
    seat: OwnedSemaphorePermit,
) -> ReceiverStream<Result<Event, Infallible>> {
    // One waits while the next is made; a page that is slower gets more at once.
    let (sender, events) = mpsc::channel(1);
    tokio::spawn(async move {
        let _seat = seat;
        let mut changed = board.changed.subscribe();
        let mut place = place;
        loop {
            // One look at the board: a run that ends between two would have its last word called the end without saying it.
            let (news, now) = board.news(place);
            place = now;
            let kind = if news["state"]["end"].is_null() { "news" } else { "end" };
            let event = Event::default()
                .event(kind)
                .id(place.to_string())
                .data(news.to_string());
            if sender.send(Ok(event)).await.is_err() || kind == "end" {
                return;
            }
            loop {
                match tokio::time::timeout(HEARTBEAT, changed.changed()).await {
                    Ok(Ok(())) => break,
                    Ok(Err(_)) => return,
                    Err(_) if sender.send(Ok(Event::default().comment("still here"))).await.is_err() => return,
                    Err(_) => {}
                }
            }
            if !board.is_over() {
                tokio::time::sleep(TOGETHER).await;
            }
            changed.mark_unchanged();
        }
    });
    ReceiverStream::new(events)
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Place {
            rows: (epoch, step),
            decisions,
            generation,
        } = self;
        write!(f, "{epoch}.{step}.{decisions}.{generation}")
    }
}

impl std::str::FromStr for Place {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Place, Self::Err> {
        let mut numbers = [0_u64; 4];
        for (number, word) in numbers.iter_mut().zip(text.split('.')) {
            *number = word.parse()?;
        }
        let [epoch, step, decisions, generation] = numbers;
        Ok(Place {
            rows: (epoch, step),
            decisions: usize::try_from(decisions).unwrap_or(usize::MAX),
            generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let place = Place {
            rows: (3, 1200),
            decisions: 17,
            generation: 4,
        };
        assert_eq!(place.to_string().parse(), Ok(place));
        assert!("1.x".parse::<Place>().is_err());
    }
}
