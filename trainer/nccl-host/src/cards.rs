//! How ranks of several hosts learn where all of them are: every rank tells rank 0, and gets the list of all.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::error::Error;
use crate::goodbye::farewell;
use crate::handshake::{Failure, Purpose};
use crate::link::{Broken, Patience, SLICE, poll_for};
use crate::place::Card;
use crate::reception::{Guest, Reception};
use crate::rendezvous::{GRACE, Rendezvous};
use crate::tcp::{Stream, TcpLink};
use crate::visits::{RETRY, connect_over_tcp};

impl Rendezvous<'_> {
    /// Exchanges cards through rank 0. By rank.
    pub(crate) fn cards(&self, own: Card, listener: BorrowedFd<'_>) -> Result<Vec<Card>, Error> {
        if self.rank > 0 {
            return self.ask_for_cards(&own);
        }
        let mut cards: Vec<Option<(Card, Option<TcpLink>)>> = (0..self.size).map(|_| None).collect();
        cards[0] = Some((own, None));
        let spread = self
            .collect_cards(&mut cards, listener)
            .and_then(|()| self.spread_cards(&mut cards));
        if let Err(error) = &spread {
            let links = cards.iter_mut().flatten().filter_map(|(_, link)| link.as_mut());
            farewell(links, self.blame(error));
        }
        spread?;
        Ok(cards.into_iter().flatten().map(|(card, _)| card).collect())
    }

    /// Rank 0's part: hears where every other rank is.
    fn collect_cards(
        &self,
        cards: &mut [Option<(Card, Option<TcpLink>)>],
        listener: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let mut reception = Reception::new(self.introduction(), self.control, vec![listener], None);
        let collected = self.wait_for_cards(cards, &mut reception);
        if let Err(error) = &collected {
            let blame = self.blame(error);
            self.last_call(|patience| {
                let goes_on = cards.iter().any(Option::is_none);
                goes_on && self.hear_card(cards, &mut reception, patience).is_ok()
            });
            farewell(reception.say_goodbye(blame).into_iter(), blame);
        }
        collected
    }

    fn wait_for_cards(
        &self,
        cards: &mut [Option<(Card, Option<TcpLink>)>],
        reception: &mut Reception<'_>,
    ) -> Result<(), Error> {
        while cards.iter().any(Option::is_none) {
            match self.patience().slice() {
                Ok(_) => self.hear_card(cards, reception, self.patience())?,
                Err(Broken::Error(error)) => return Err(error),
                Err(_) => {
                    let refused = reception.refused.take();
                    return Err(self.late(&|rank| cards[rank as usize].is_none(), refused));
                }
            }
            for (card, link) in cards.iter_mut().flatten() {
                if let Some(link) = link
                    && link.is_closed()?
                {
                    let broken = link.last_word();
                    return Err(self.with_peer(card.rank, link, broken));
                }
            }
        }
        Ok(())
    }

    /// Waits for something to come, for a slice, and takes it.
    fn hear_card(
        &self,
        cards: &mut [Option<(Card, Option<TcpLink>)>],
        reception: &mut Reception<'_>,
        patience: Patience<'_>,
    ) -> Result<(), Error> {
        let mut polled = Vec::new();
        reception.watch(&mut polled);
        poll_for(&mut polled, SLICE)?;
        let expects = |rank: u32, purpose: u8| {
            let may_come = rank < self.size && cards[rank as usize].is_none();
            (may_come && purpose == Purpose::Card as u8).then_some(Purpose::Card)
        };
        let guest = reception.next(expects, patience);
        if let Some(Guest::Card(card, link)) = guest.map_err(|failure| self.failed(failure))? {
            let place = card.rank as usize;
            cards[place] = Some((card, Some(*link)));
        }
        Ok(())
    }

    /// Rank 0's part: tells every other rank where all are.
    fn spread_cards(&self, cards: &mut [Option<(Card, Option<TcpLink>)>]) -> Result<(), Error> {
        let list: Vec<Vec<u8>> = cards.iter().flatten().map(|(card, _)| card.to_bytes()).collect();
        for (card, link) in cards.iter_mut().flatten() {
            let Some(link) = link else { continue };
            for bytes in &list {
                link.send(Stream::Card, bytes, self.patience())
                    .map_err(|broken| self.with_peer(card.rank, link, broken))?;
            }
        }
        Ok(())
    }

    /// Every other rank's part.
    fn ask_for_cards(&self, own: &Card) -> Result<Vec<Card>, Error> {
        let Some(root) = self.id.root else {
            return Err(Error::BadId {
                why: "it names no address of rank 0, and this rank was told to use TCP".into(),
            });
        };
        let mut link = self.reach_root(root)?;
        let cards = self.receive_cards(&mut link, own);
        if let Err(error) = &cards {
            farewell(std::iter::once(&mut link), self.blame(error));
        }
        cards
    }

    fn receive_cards(&self, link: &mut TcpLink, own: &Card) -> Result<Vec<Card>, Error> {
        link.send(Stream::Card, &own.to_bytes(), self.patience())
            .map_err(|broken| self.with_peer(0, link, broken))?;
        let patience = Patience {
            until: self.patience().until.map(|until| until + GRACE.min(self.deadline / 4)),
            ..self.patience()
        };
        let mut cards = Vec::new();
        for rank in 0..self.size {
            let bytes = link
                .receive(Stream::Card, patience)
                .map_err(|broken| self.with_peer(0, link, broken))?;
            cards.push(
                Card::from_bytes(&bytes)
                    .filter(|card| card.rank == rank)
                    .ok_or(Error::Refused {
                        rank: Some(0),
                        why: "it sent a list of ranks that is none".into(),
                    })?,
            );
        }
        Ok(cards)
    }

    /// Connects to rank 0, as soon as it listens, to tell it where this rank is.
    fn reach_root(&self, address: SocketAddr) -> Result<TcpLink, Error> {
        let mut refused = None;
        loop {
            match self.visit_root(address) {
                Ok(link) => return Ok(link),
                Err(Failure::Connection(why)) => refused = Some(why),
                Err(Failure::NotYet) => {}
                Err(failure @ (Failure::Meeting(_) | Failure::Left(..))) => return Err(self.failed(failure)),
            }
            match self.patience().slice() {
                Ok(slice) => std::thread::sleep(slice.min(RETRY)),
                Err(Broken::Error(error)) => return Err(error),
                Err(_) => return Err(self.late(&|other| other == 0, refused)),
            }
        }
    }

    fn visit_root(&self, address: SocketAddr) -> Result<TcpLink, Failure> {
        let mut socket = connect_over_tcp(address)?;
        // Whether the connection comes about shows at the first frame.
        let introduction = self.introduction();
        let parties = introduction.greet(&mut socket, 0, Purpose::Card, self.patience())?;
        Ok(TcpLink::new(
            socket,
            introduction.keys(&parties),
            0,
            address.to_string(),
        ))
    }
}
