#!/usr/bin/perl
# Mails what visitors write to the addresses that the site's settings name. It
# shows a form of its own, and takes any form of the site. Nothing that a
# visitor sends gets into the head of a mail but an address for replies.
use v5.36;
use utf8;
use Encode ();
use MIME::QuotedPrint ();
use constant { BODY => 64 << 10, FIELDS => 50 };

binmode STDOUT, ':encoding(UTF-8)';
main();

sub main () {
    return page('200 OK', '', 1) if ($ENV{REQUEST_METHOD} // '') ne 'POST';
    my ($origin) = ($ENV{HTTP_ORIGIN} // '') =~ m{\Ahttps?://([^/]+)\z};
    return page('403 Forbidden', 'This form belongs to another site.') if length($ENV{HTTP_ORIGIN} // '') && ($origin // '') ne ($ENV{HTTP_HOST} // '');
    return page('415 Unsupported Media Type', 'This form must be sent as application/x-www-form-urlencoded.')
        if ($ENV{CONTENT_TYPE} // '') !~ m{\Aapplication/x-www-form-urlencoded\b}i;
    return page('413 Content Too Large', 'That is too long.', 1) if ($ENV{CONTENT_LENGTH} // 0) > BODY;
    my @fields = form();
    return page('413 Content Too Large', 'That form has too many fields.') if @fields > FIELDS;
    my %f = map { @$_ } @fields;
    return done() if length($f{website} // '');    # taken by nobody who sees the page
    return page('422 Unprocessable Content', 'Please write something.', 1, \%f) if !grep { $_->[1] =~ /\S/ } @fields;
    my $status = deliver(\%f, @fields);
    return done() if !$status;
    return page('503 Service Unavailable', 'Too much is being sent at the moment. Please try again later.', 1, \%f) if $status == 75;
    page('502 Bad Gateway', 'Your message could not be sent.', 1, \%f);
}

sub setting ($name) { return Encode::decode('UTF-8', $ENV{ 'SERAI_SETTING_' . uc $name } // '') }
sub addresses ($name) { return grep { /\A[^\s<>"(),;:\\\@]+\@[^\s<>"(),;:\\\@]+\z/ } split /\s*,\s*/, setting($name) =~ s/\A\s+|\s+\z//gr }
sub html ($text) { return $text =~ s{([&<>"'])}{'&#' . ord($1) . ';'}ger }
sub line ($text) { return $text =~ s/[\p{Cc}\x{2028}\x{2029}]+/ /gr }

# form reads the fields in the order of the form: [name, value].
sub form () {
    read STDIN, (my $body = ''), $ENV{CONTENT_LENGTH} // 0;
    my @fields;
    for (split /[&;]/, $body) {
        my ($name, $value) = map { Encode::decode('UTF-8', tr/+/ /r =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ger) } split /=/, $_, 2;
        push @fields, [line($name), ($value // '') =~ s/\r\n?/\n/gr =~ s/[^\P{Cc}\n\t]//gr] if length($name // '');
    }
    return @fields;
}

# deliver sends the mail and returns the exit status of sendmail.
sub deliver ($f, @fields) {
    my @to = addresses('to');
    my ($from) = (addresses('from'), @to);
    die "the setting to names nobody\n" if !@to;
    my ($reply) = ($f->{email} // '') =~ /\A([A-Za-z0-9._+-]{1,64}\@[A-Za-z0-9.-]{1,190})\z/;
    my @head = (
        'From: ' . $from, 'To: ' . join(', ', @to), 'Subject: ' . Encode::encode('MIME-Header', line(setting('subject'))),
        $reply ? "Reply-To: $reply" : (), 'Auto-Submitted: auto-generated', 'MIME-Version: 1.0',
        'Content-Type: text/plain; charset=utf-8', 'Content-Transfer-Encoding: quoted-printable',
    );
    my $text = join '', map { my ($name, $value) = @$_; $value =~ /\n/ ? "$name:\n$value\n\n" : "$name: $value\n" } grep { $_->[0] ne 'website' } @fields;
    $text .= sprintf "\n-- \nSent from %s%s by %s\n", line($ENV{HTTP_HOST} // '?'), line($ENV{SERAI_MOUNT} // ''), line($ENV{REMOTE_ADDR} // '?');
    open my $mail, '|-', '/usr/sbin/sendmail', '-i', '-f', $from, '--', @to or die "sendmail: $!\n";
    print {$mail} Encode::encode('UTF-8', join("\n", @head) . "\n\n"), MIME::QuotedPrint::encode_qp(Encode::encode('UTF-8', $text));
    close $mail;
    return $? >> 8 || $? & 127;
}

sub done () {
    my $next = setting('next');
    return page('200 OK', setting('thanks')) if $next !~ m{\A/(?![/\\])[!-~]*\z};
    print "Status: 303 See Other\nLocation: $next\nContent-Type: text/plain\n\n";
}

sub page ($status, $message, $form = 0, $f = {}) {
    my ($title, $self) = (html(setting('title')), html($ENV{SCRIPT_NAME} || '/'));
    print "Status: $status\nContent-Type: text/html; charset=utf-8\nX-Content-Type-Options: nosniff\n",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'\n\n";
    print <<"END";
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>body{font:1em/1.5 sans-serif;max-width:40em;margin:2em auto;padding:0 1em}label{display:block}input,textarea{width:100%;box-sizing:border-box;font:inherit}.nobody{position:absolute;left:-999em}</style>
</head><body><main>
<h1>$title</h1>
END
    print '<p role="alert"><strong>', html($message), "</strong></p>\n" if length $message;
    if ($form) {
        my ($name, $email, $text) = map { html($f->{$_} // '') } qw(name email message);
        print <<"END";
<form method="post" action="$self">
<p><label for="name">Your name</label><input id="name" name="name" autocomplete="name" value="$name"></p>
<p><label for="email">Your mail address, for an answer</label><input id="email" name="email" type="email" autocomplete="email" value="$email"></p>
<p><label for="message">Your message</label><textarea id="message" name="message" rows="8" required>$text</textarea></p>
<p class="nobody" aria-hidden="true"><label for="website">Leave this empty</label><input id="website" name="website" tabindex="-1" autocomplete="off"></p>
<p><button>Send</button></p>
</form>
END
    }
    print "</main></body></html>\n";
}
